"""Certified bounds by randomised smoothing, in L2, for labels of pixels, numbers and landmarks.

The judged network is the smoothed one: what the network says most often (labels), on average
(numbers in [0, 1]) or in the median (coordinates) of its image plus Gaussian noise. An attack of
`attacks.expected` is of that same network, so that certified and attacked values bound each other.

sampling  counts and values under noise, streamed
beside    the two bounds of a run's networks
bounds    from these to labels, numbers and intervals that hold with probability 1 - alpha
"""
