"""Pages for the browser, from plain data: markup, plots, and the script of pages that sort."""
