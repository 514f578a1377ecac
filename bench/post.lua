-- The request every server is measured with: 26 bytes of JSON by POST; the figures come back as one line of JSON.
wrk.method = "POST"
wrk.body = '{"a":1234567,"b":87654321}'
wrk.headers["Content-Type"] = "application/json"

local delay = os.getenv("BENCH_DELAY")
if delay and delay ~= "" then
  wrk.headers["X-Delay"] = delay
end

local paths = os.getenv("BENCH_PATHS")
if paths and paths ~= "" then
  local requests = {}
  function init(args)
    math.randomseed(1)
    for path in io.lines(paths) do
      requests[#requests + 1] = wrk.format(nil, path)
    end
  end
  function request()
    return requests[math.random(#requests)]
  end
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"microseconds":%d,"p50_us":%d,"p99_us":%d,"not_2xx":%d,"socket_errors":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.status, e.connect + e.read + e.write + e.timeout))
end
