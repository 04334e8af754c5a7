// A function is no JSON: the client sends the literal "m":undefined.
'use strict'

const { main, caught } = require('./lib')

main(async function (call, client) {
  const sent = []
  const write = client.target.write
  client.target.write = function (line, ...more) {
    sent.push(line)
    return write.call(this, line, ...more)
  }
  const nothing = () => 1
  const ping = await call('ping', nothing)
  const echo = await call('echo', nothing)
  const stats = await call('stats', nothing)
  const insert = await caught(call('insert', nothing))
  return {
    literal: sent.every((line) => line.includes('"m":undefined')),
    ping: ping,
    echo: typeof echo,
    stats: typeof stats.jobs,
    insert: insert
  }
})
