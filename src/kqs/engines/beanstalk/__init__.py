"""The engine over a pool of beanstalkds."""

from .engine import BeanstalkEngine

__all__ = ["BeanstalkEngine"]
