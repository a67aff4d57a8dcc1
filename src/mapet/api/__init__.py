"""One module per verb: settings in, result out."""
