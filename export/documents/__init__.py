"""Write what people read about an export: model card and README.

Every figure in them comes from `files`. Read `model_card.py` first.
"""
