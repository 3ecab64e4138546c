"""Several servers behind proxies, under load: how calls spread, and what a restart costs."""
