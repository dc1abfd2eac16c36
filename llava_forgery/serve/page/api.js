// Talking to the server: verdicts, jobs, streams, and a token where it asks for one.

let token = sessionStorage.getItem("token") || "";

export class ApiError extends Error {
  constructor(status, error, retryAfter) {
    super(error.message);
    this.status = status;
    this.code = error.code;
    this.retryAfter = retryAfter;
  }
}

export function useToken(value) {
  token = value;
  sessionStorage.setItem("token", value);
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path, { ...options, headers, credentials: "omit" });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  const error = body?.error ?? { message: `the server answered with status ${answer.status}` };
  throw new ApiError(answer.status, error, Number(answer.headers.get("Retry-After")));
}

export const info = async () => (await call("v1/info")).json();

function form(file, fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  body.append("file", file, file.name);
  return { method: "POST", body };
}

// The record of a picture or a video, whose job is asked for until it ends.
export async function detect(file, fields, onProgress, signal) {
  let answer = await call("v1/detect", { ...form(file, fields), signal });
  if (answer.status !== 202) return answer.json();
  const { url } = await answer.json();
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 500));
    if (signal.aborted) {
      call(url.slice(1), { method: "DELETE" }).catch(() => {});
      throw new DOMException("", "AbortError");
    }
    const job = await (await call(url.slice(1))).json();
    onProgress(job.progress);
    if (job.error) throw new ApiError(500, job.error);
    if (job.status === "done") return job.result;
  }
}

export async function explain(file, fields, signal) {
  return (await call("v1/explain", { ...form(file, fields), signal })).json();
}

// The pieces of an answer as they are written.
export async function* chat(body, signal) {
  const answer = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(500, chunk.error);
      yield chunk.choices[0]?.delta?.content ?? "";
    }
  }
}
