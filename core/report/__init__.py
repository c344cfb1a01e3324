"""Makes the page of a run, and what pages are made of: drawings, rows and templates."""
