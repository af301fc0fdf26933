"""One module a chapter that needs code of its own, named as its notebook; what several share is in `eestudy.report`."""
