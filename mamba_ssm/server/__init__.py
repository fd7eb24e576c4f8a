"""An HTTP server of one model: OpenAI's endpoints, and answers about a book. Needs the extra ``serve``."""
