"""From one trained model to the artifacts of an export."""
