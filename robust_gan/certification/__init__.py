"""Certification: lower bounds of robust accuracy, which no attack can break."""

from robust_gan.certification.bounds import METHODS, certify, input_box, interval_bounds, margin_bounds
from robust_gan.certification.interval import Interval
from robust_gan.certification.smoothing import Smoothed, smooth

__all__ = ["METHODS", "Interval", "Smoothed", "certify", "input_box", "interval_bounds", "margin_bounds", "smooth"]
