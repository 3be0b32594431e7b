"""From a name to weights on a device, with torch: what several engines load in the same way."""
