// Ten thousand calls at once: each is called back once, with its own value.
'use strict'

const { main } = require('./lib')

const COUNT = 10000

main(async function (call, client) {
  const times = new Array(COUNT).fill(0)
  let wrong = 0
  await new Promise(function (resolve) {
    let left = COUNT
    for (let number = 0; number < COUNT; number++) {
      const insert = number % 10 === 0
      const argument = insert ? { type: 'flight', data: number } : { number: number }
      client.call(insert ? 'insert' : 'echo', argument, function (error, value) {
        times[number]++
        if (error || (insert ? !value.id : value.number !== number)) wrong++
        if (--left === 0) resolve()
      })
    }
  })
  await call('ping') // whatever comes twice has come by now
  return { once: times.filter((count) => count === 1).length, wrong: wrong }
})
