"""The processes that hold models, as the session sees them: started, asked, watched, ended."""
