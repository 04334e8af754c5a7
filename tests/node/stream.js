// Several replies to one call: how often, and with what, is the callback called?
'use strict'

const { main, shown } = require('./lib')

main(async function (call, client) {
  const seen = {}
  for (const name of ['parts', 'none', 'value', 'error', 'plain']) {
    seen[name] = []
    client.call(name, function (error, value) {
      seen[name].push(error ? shown(error) : value === undefined ? 'undefined' : value)
    })
  }
  await call('last') // answered after all the others are complete
  seen.open = Object.keys(client.callbacks).length
  return seen
})
