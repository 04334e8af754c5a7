// The life of a job, as several replies to one call, while other calls of the same connection change it.
'use strict'

const { main, caught } = require('./lib')

main(async function (call, client) {
  const { id } = await call('insert', { type: 'watched', result_ttl: 60 })
  const seen = []
  const done = new Promise((resolve) => {
    client.call('watch', { id }, function (error, event) {
      seen.push(error ? String(error) : event.event)
      if (error || event.event === 'done') resolve()
    })
  })
  const { jobs } = await call('reserve', { types: ['watched'] })
  const { receipt } = jobs[0]
  await call('renew', { receipts: [receipt], progress: { fraction: 0.5 } })
  await call('settle', [{ receipt, outcome: 'ok', result: { pages: 3 } }])
  await done
  const result = await call('wait', { id }) // answered after the end of the watch
  const refused = await caught(call('watch', { id: 'nosuch' }))
  return { id, seen, result, refused, open: Object.keys(client.callbacks).length }
})
