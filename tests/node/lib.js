// What the scripts here share. Each is given a port, talks to it with the qrpc client, and prints one JSON
// document of what it saw; the Python test decides whether that is right.
'use strict'

const qrpc = require('qrpc')

const port = Number(process.argv[2])

// Connects, runs the script, prints what it returns. A call that never comes back is the test's timeout.
exports.main = function (script) {
  const client = qrpc.connect(port, '127.0.0.1', async function () {
    const call = (name, ...argument) =>
      new Promise((resolve, reject) =>
        client.call(name, ...argument, (error, value) => (error ? reject(error) : resolve(value))))
    try {
      process.stdout.write(JSON.stringify(await script(call, client)) + '\n')
    } catch (error) {
      process.stderr.write(String(error && error.stack) + '\n')
      process.exitCode = 1
    }
    client.close()
  })
}

// An error as the callback got it: is it an Error, and what does it carry? (message and code do not show by
// themselves: Node's own errors hide them, and so does the client.)
exports.shown = function (error) {
  return { isError: error instanceof Error, ...error, message: error.message, code: error.code }
}

exports.caught = async function (promise) {
  try {
    return { value: await promise }
  } catch (error) {
    return exports.shown(error)
  }
}
