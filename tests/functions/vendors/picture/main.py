"""One function for Google's framework, in a folder as it is deployed from."""

import functions_framework
from lines import LINES


@functions_framework.http
def entry_point(request):
    return LINES[request.method]
