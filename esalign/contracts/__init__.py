"""What every plug-in must hold to, as functions that assert it: for the tests of esalign and of plug-ins."""
