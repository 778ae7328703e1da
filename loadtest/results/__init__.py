"""What a load came to: figures, the search for limits, the verdict, the screen and the reports."""
