LINES = {"GET": "got", "POST": "posted"}
