import Libvirt
import Platform

/// A domain's KPIs from libvirt's statistics (`virConnectGetAllDomainStats`), which are counters since its start.
struct DomainCounters: Sendable {
    private var rates = RateTable()

    /// What this domain is asked for: all but what only a few domains have.
    static let groups: StatisticsGroups = [.state, .cpu, .balloon, .vcpu, .interface, .block]

    mutating func values(_ statistics: DomainStatistics, at now: MonotonicTime) -> [String: Double] {
        var values: [String: Double] = [:]
        addProcessors(statistics, now, &values)
        addBalloon(statistics, now, &values)
        addBlocks(statistics.blocks, now, &values)
        addInterfaces(statistics.interfaces, now, &values)
        // 2: measured.
        if statistics.dirtyRateStatus == 2, let rate = statistics.dirtyRateMegabytesPerSecond, rate >= 0 {
            values.note("dirty_bytes_per_second", Double(rate) * 1_048_576)
        }
        return values
    }

    /// Nanoseconds of CPU time as per cent of one core.
    private mutating func percent(_ name: String, _ nanoseconds: UInt64?, _ now: MonotonicTime) -> Double? {
        rates.perSecond(name, nanoseconds, at: now).map { $0 / 1e7 }
    }

    private mutating func addProcessors(_ statistics: DomainStatistics, _ now: MonotonicTime, _ values: inout [String: Double]) {
        let vcpus = statistics.vcpus
        values.note("vcpu_time_percent", percent("vcpu", sum(vcpus.map(\.nanoseconds)), now))
        values.note("vcpu_wait_percent", percent("wait", sum(vcpus.map(\.waitNanoseconds)), now))
        values.note("vcpu_delay_percent", percent("delay", sum(vcpus.map(\.delayNanoseconds)), now))
        let halted = vcpus.compactMap(\.isHalted)
        if !halted.isEmpty { values.note("vcpus_halted_count", Double(halted.filter { $0 }.count)) }
        if !vcpus.isEmpty { values.note("vcpus_online_count", Double(vcpus.count)) }
        values.note("cpu_time_percent", percent("cpu", statistics.cpuNanoseconds, now))
        values.note("cpu_system_percent", percent("system", statistics.cpuSystemNanoseconds, now))
    }

    private mutating func addBalloon(_ statistics: DomainStatistics, _ now: MonotonicTime, _ values: inout [String: Double]) {
        func bytes(_ name: String) -> Double? { statistics.unsigned("balloon.\(name)").map { Double($0) * 1024 } }
        values.note("memory_balloon_bytes", bytes("current"))
        values.note("memory_resident_bytes", bytes("rss"))
        // From the guest's driver, when it has one and was told to report.
        values.note("guest_memory_unused_bytes", bytes("unused"))
        values.note("guest_memory_usable_bytes", bytes("usable"))
        values.note("guest_swap_in_bytes_per_second", rates.perSecond("swap_in", statistics.unsigned("balloon.swap_in"), at: now).map { $0 * 1024 })
        values.note("guest_swap_out_bytes_per_second", rates.perSecond("swap_out", statistics.unsigned("balloon.swap_out"), at: now).map { $0 * 1024 })
        values.note("guest_major_faults_per_second", rates.perSecond("major_fault", statistics.unsigned("balloon.major_fault"), at: now))
    }

    private mutating func addBlocks(_ blocks: [DomainStatistics.Block], _ now: MonotonicTime, _ values: inout [String: Double]) {
        guard !blocks.isEmpty else { return }
        let kinds: [(String, UInt64?, UInt64?, UInt64?)] = [
            ("read", sum(blocks.map(\.readRequests)), sum(blocks.map(\.readBytes)), sum(blocks.map(\.readNanoseconds))),
            ("write", sum(blocks.map(\.writeRequests)), sum(blocks.map(\.writeBytes)), sum(blocks.map(\.writeNanoseconds))),
            ("flush", sum(blocks.map(\.flushRequests)), nil, sum(blocks.map(\.flushNanoseconds))),
        ]
        for (kind, requests, bytes, nanoseconds) in kinds {
            let done = rates.growth("block \(kind) requests", requests, at: now)
            let spent = rates.growth("block \(kind) time", nanoseconds, at: now)
            values.note("block_\(kind)_requests_per_second", done.map { $0.count / $0.seconds })
            values.note("block_\(kind)_bytes_per_second", rates.perSecond("block \(kind) bytes", bytes, at: now))
            // Without a request there is no latency, which is not a latency of 0.
            if let done, let spent, done.count > 0 { values.note("block_\(kind)_ms", spent.count / done.count / 1e6) }
        }
        values.note("block_errors_per_second", rates.perSecond("block errors", sum(blocks.map(\.errors)), at: now))
    }

    private mutating func addInterfaces(_ interfaces: [DomainStatistics.Interface], _ now: MonotonicTime, _ values: inout [String: Double]) {
        guard !interfaces.isEmpty else { return }
        // libvirt sees the host's end of the cable and turns the directions itself: received by the guest.
        let counters: [(String, UInt64?)] = [
            ("net_received_bytes", sum(interfaces.map(\.receivedBytes))), ("net_sent_bytes", sum(interfaces.map(\.sentBytes))),
            ("net_received_packets", sum(interfaces.map(\.receivedPackets))), ("net_sent_packets", sum(interfaces.map(\.sentPackets))),
            ("net_drops", sum(interfaces.flatMap { [$0.receiveDrops, $0.sendDrops] })),
            ("net_errors", sum(interfaces.flatMap { [$0.receiveErrors, $0.sendErrors] })),
        ]
        for (name, count) in counters { values.note("\(name)_per_second", rates.perSecond(name, count, at: now)) }
    }

    /// Of what was reported; nil when nothing was.
    private func sum(_ counts: [UInt64?]) -> UInt64? {
        let known = counts.compactMap { $0 }
        return known.isEmpty ? nil : known.reduce(0, &+)
    }
}
