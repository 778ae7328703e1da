"""What clients speak to; each front end is a sibling here."""
