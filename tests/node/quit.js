'use strict'

const { main } = require('./lib')

main(async (call) => ({ quit: await call('quit') }))
