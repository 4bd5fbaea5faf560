"""Where the neurons of a network are: layers and who feeds whom, found by tracing or stated by hand."""
