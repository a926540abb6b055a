"""Named detection data sets: facts about where their files lie."""
