"""What a run's summary looks like to a reader: words and tables, and nothing that is computed.

Every figure stands in the summary already (`measure/summary.py`); this room chooses what to show
and says under which conditions it holds.  The same saved run can be reported again at any time.

    text         one run, 72 columns, to read in a terminal or to paste into a mail
    matrix       the cells of a matrix side by side
    comparison   two runs, metric by metric
    figures      numbers with units, tables, histograms: shared by the above
"""
