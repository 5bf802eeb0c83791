Sample=write_report=None
