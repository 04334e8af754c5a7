// Refusals arrive as Error objects with their members.
'use strict'

const { main, caught } = require('./lib')

main(async function (call) {
  return {
    unknown: await caught(call('nosuch')),
    unknownField: await caught(call('insert', { type: 'x', dealy: 1 })),
    badPrio: await caught(call('insert', [{ type: 'x' }, { type: 'x', prio: 'top' }])),
    tooLarge: await caught(call('insert', { type: 'x'.repeat(198) })),
    notFound: await caught(call('job', { id: 'nosuch' })),
    after: await call('ping')
  }
})
