from .addresses import listen as listen
from .admission import Limits as Limits
from .mcp_server import serve_mcp as serve_mcp
from .middleware import cross_origin as cross_origin
from .server import create_app as create_app, read_keys as read_keys, serve as serve
