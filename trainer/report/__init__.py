"""`RUN/report.html`: one file that says what a run is, how it went and where it errs.

    content     gathers what the run directory holds
    figures     curves and the confusion matrix, as positions and shares
    pictures    images of the split with what was predicted
    seen        training images as the model saw them
    render      the template, report.html.j2 and report.css, filled in

The file refers to nothing outside itself and runs no script.
"""
