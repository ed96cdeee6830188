"""The stages of `prepare`: listing, checking, choosing and writing, over a state on disk that a kill does not lose."""
