"""Work that takes a while: submit it, and follow it or fetch its result later.

curl -i -X POST 'http://127.0.0.1:8000/spaces/demo/functions/report/async-invoke' -d '{"pages": 5}'
spaces calls show -f ID          # or GET the Location that it was answered with
"""

import time


def handle(data, function_call_info):
    pages = int(data.get("pages", 5))
    for page in range(pages):
        function_call_info.progress(page / pages, f"page {page + 1} of {pages}")
        print(f"writing page {page + 1}")
        time.sleep(1)
    return {"pages": pages}
