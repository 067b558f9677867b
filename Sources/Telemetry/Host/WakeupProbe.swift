import Glibc
import Platform

/// How long what is ready to run waits for a processor on this host: a thread sleeps 20 ms again and again, and looks how long that took until it ran again (as
/// cyclictest of rt-tests does). A CPU quota, a busy neighbour and time stolen by a hypervisor show in it, also where the kernel keeps no pressure figures.
///
/// The whole time counts, not only what is late: being late by 0.3 ms instead of 0.1, because a guest has more to do than its shadow's host, is no trouble, and as a
/// ratio it would look like some. The mean of all, as what a host does to its threads it does to many; and no sleep for more than 100 ms, because then a
/// single one, which comes by chance, would speak for all.
enum WakeupProbe {
    private static let sleeps = 6
    private static let sleepMs = 20.0
    private static let mostMs = 100.0
    /// No more sleeps after that, where each one takes much longer than it should.
    private static let limitMs = 300.0

    /// Milliseconds, from 20 to 100. It takes 120 to 400 ms, nearly all of which are slept.
    static func look() -> Double {
        var times: [Double] = []
        let begin = MonotonicTime.now
        while times.count < sleeps, MonotonicTime.now.milliseconds(since: begin) < limitMs {
            let asleep = MonotonicTime.now
            usleep(UInt32(sleepMs * 1000))
            times.append(MonotonicTime.now.milliseconds(since: asleep))
        }
        return mean(times)
    }

    static func mean(_ times: [Double]) -> Double { times.isEmpty ? sleepMs : times.reduce(0) { $0 + min($1, mostMs) } / Double(times.count) }
}
