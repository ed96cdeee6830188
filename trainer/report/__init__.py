"""`RUN/report.html`: one file that says what a run is, how it went and where it errs; and runs side by side.

    content          gathers what the run directory holds
    figures          curves and the confusion matrix, as positions and shares
    unit_charts      reliability, ROC and precision-recall curves
    pictures         images of the split with what was predicted
    gallery          which of them are shown
    saliency         where the model looked in a few of them
    seen             training images as the model saw them
    rows             settings, plan and environment
    render           the template, report.html.j2 and report.css, filled in
    comparison_page  the same for `trainer compare`, compare.html.j2

The files refer to nothing outside themselves and run no script.
"""
