"""Results of a load: figures, the search for limits, the verdict, the screen and the reports."""
