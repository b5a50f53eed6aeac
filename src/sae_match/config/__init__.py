"""Configuration: dataclass schema, composition and checks. Knows neither torch nor any other room."""
