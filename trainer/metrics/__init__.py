"""Measure how well a model does on a split, from labels and logits alone.

    scores         checks, probabilities and losses of the three tasks
    evaluation     `RUN/evaluation/<split>.json`, and the arrays beside it
    summary        `summarize`: all metrics of a split, for training and `trainer evaluate`
    predictions    accuracy, top-k, precision, recall and F1, confusion matrix
    thresholds     probability thresholds for predicting a class, tuned on the validation split
    ranking        ROC and precision-recall curves and the areas under them
    calibration    expected calibration error, reliability, temperature
    bootstrap      intervals of any metric, and of the difference between two runs
    slices         the same metrics for parts of a split
    comparison     whether two runs differ significantly on the same examples

Nothing here depends on batches, replicas or the order of the examples. Labels are [n] int64, or, for multi_label,
multi-hot [n, num_classes]; logits are [n, num_classes] float32, for binary the two columns (0, logit).
"""
