"""Loaders of network families, one file each: name(input_shape, num_classes, **whole_numbers) -> Backbone."""
