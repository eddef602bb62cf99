"""One small module a data format; ``vpgtrans.data.load`` chooses by the keys it finds."""
