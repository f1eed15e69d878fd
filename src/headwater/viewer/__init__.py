"""The viewer: a local page that asks the model, shows the rows behind what it says, and acts on them.

| file | noun |
| --- | --- |
| `API.md` | the contract between server and page |
| `opened.py` | `Opened`: an index or a finished trace, its rows and models, and what can be done with them |
| `answers.py` | `Answers`: what was asked, a folder of the viewer's state for each |
| `views.py` | `Views`: pages of cards, filtered, sorted, weighted |
| `marks.py` | `Marks`: rows to drop or to fix |
| `exports.py` | files to take away |
| `events.py` | `Events`: what changes, told to every open page |
| `jobs.py` | `Jobs`: slow work, one after the other, in a worker process that may die |
| `worker.py` | that process: models, loaded once |
| `tasks.py` | what the worker does: says, measures, scores, splits by word |
| `repairing.py` | trains again without the marked rows, and asks again |
| `guard.py` | who may ask: host, origin, token, size |
| `app.py` | the routes |
| `serving.py` | the socket, uvicorn, and the end |

FastAPI and uvicorn come with the extra `viewer`; nothing here is imported before `headwater serve` runs.
"""
