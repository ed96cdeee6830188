"""Write `RUN/report.html`, one file about a run, its training and its errors, and the page that compares runs.

    content          the content of the report, read from the run directory
    figures          curves and the confusion matrix, as positions and shares
    unit_charts      reliability, ROC and precision-recall curves
    pictures         images of the split with their predictions
    gallery          the choice of images
    saliency         heat maps of a few of them
    seen             training images as the model saw them
    rows             settings, plan and environment
    render           the template, report.html.j2 and report.css, filled in
    comparison_page  the same for `trainer compare`, compare.html.j2

The files refer to nothing outside themselves and run no script.
"""
