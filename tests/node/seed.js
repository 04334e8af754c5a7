// Every call of the seed, as a program written for it would make them.
'use strict'

const { main } = require('./lib')

main(async function (call) {
  const values = [null, true, 0, -1.5, 'text', '', '\u2603\n"\\', [], {}, { a: [1, { b: null }] }, '"m":undefined']
  const seen = {
    ping: await call('ping'),
    pingWithArgument: await call('ping', { any: 'thing' }),
    echo: [],
    echoNothing: typeof (await call('echo')),
    one: await call('insert', { type: 'seed', data: { a: 1 }, prio: 'high', delay: 0, ttr: 30 }),
    many: await call('insert', [{ type: 'seed' }, { type: 'seed', data: [1, 2] }]),
    stats: await call('stats'),
    values: values
  }
  for (const value of values) seen.echo.push(await call('echo', value))
  return seen
})
