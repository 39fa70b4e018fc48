"""The web page of app.py."""
