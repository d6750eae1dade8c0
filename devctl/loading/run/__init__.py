"""Running a loaded model, timed and measured."""
