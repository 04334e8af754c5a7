"""The engine over real beanstalkds, beside other programs, and over networks that break."""
