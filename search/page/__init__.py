"""The page of the search: a web server on this machine, and three static files.

What the page may ask for. A window is named by its id, "file:number", never by a path. `?model=NAME` chooses a model of
the index; without it, the one that the server began with.

    GET  /  /page.js  /page.css     the files in `static/`
    GET  /api/index                 what the index holds
    POST /api/query                 JSON `questions.Question` -> moments
    POST /api/upload                a clip or a picture as the body -> moments like it
    GET  /video/ID                  the file of a window, also in parts (Range)
    GET  /thumb/ID                  a JPEG of a window's middle
    GET  /clip/ID                   a window as h264, for what a browser cannot play
    GET  /maps/ID                   where STOP's prompts are: regions of each frame, prompts between frames

A mistake is answered with {"error": one sentence}.
"""
