"""Files: paths on this machine or in an object store, and the folder of a run."""
