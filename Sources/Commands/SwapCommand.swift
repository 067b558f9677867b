import ControlProtocol

struct SwapCommand: Command {
    let spec = CommandSpec(
        name: "swap", summary: "move a domain to another host, losing nothing",
        operands: [.init(name: "DOMAIN")],
        options: [
            .init("to", value: "HOST", help: "Of a domain with a shadow on HOST: swap to that one; default: the freshest. Of one that is not protected: move it to HOST, a name from "
                + "'peers' in the configuration, by libvirt's live migration."),
            .init("dry-run", help: "With --to: measure how fast the guest dirties its memory, predict duration and downtime, and move nothing."),
            .init("bandwidth", value: "MiB/s", help: "With --to: limit for memory and disks, 1 to 1048576, or with a unit: 500MiB/s, 1GiB/s. Default: none."),
            .init("downtime", value: "TIME", help: "With --to: how long the guest may stand still at the end: 300ms, 1s; a plain number means milliseconds. Default: QEMU's, 300ms."),
            .init("auto-converge", help: "With --to: slow the guest down when it dirties memory faster than that is sent. The default."),
            .init("no-auto-converge", help: "With --to: leave the guest its speed."),
            .init("postcopy", help: "With --to: after one pass over its memory let the guest go over and fetch the rest as it needs it. It converges always; "
                + "but when the network fails in the meantime, the guest stands still until it is back."),
            .init("parallel", value: "N", help: "With --to: N connections at a time (multifd), 1 to 255."),
            .init("compress", help: "With --to: send less and compute more (XBZRLE; with --parallel zstd, which libvirt 9.0 lacks)."),
            .init("tls", help: "With --to: encrypt what QEMU sends; both hosts need certificates for QEMU (/etc/pki/qemu)."),
            .init("timeout", value: "TIME", help: "With --to: cancel after this long, 1s to 7 days: 90s, 10000ms; a plain number means seconds."),
            .init("uri", value: "URI", help: "With --to: how this host's libvirt reaches HOST's. Default: the URI in 'peers'."),
            .init("pool", value: "NAME", help: "With --to: HOST's storage pool for all disks. Default: for each disk the pool of the same name as here."),
            .init("discard-stale", help: "With --to: let the disks' copies overwrite volumes on HOST that are not known to be replicas, or that were written to since. "
                + "What is in them is lost."),
        ] + CommandSpec.Option.client,
        description: [
            "Run on the host where DOMAIN (name, id or UUID) runs. Of a protected domain it captures one last epoch, activates the shadow from it and ends the "
                + "source. If anything fails before the shadow runs, the guest goes on here as if nothing had been.",
            "A domain without a shadow is moved by libvirt's live migration: say where with --to. Its local disks are copied to volumes on the other host, its definition and "
                + "autostart go with it. Ctrl-C cancels, and the guest stays. Libvirt on HOST has to be reachable from libvirt here.",
            "When it is over, the guest gets its shadow by itself if it has a policy (`shadow-virt policy`), and the new host protects it to its other shadows' hosts, if it has any. "
                + "Without either it is not protected until `protect` is run there.",
        ],
        examples: [
            .init("shadow-virt swap web1", "Empty this host for maintenance: to its shadow"),
            .init("shadow-virt swap web1 --to b --dry-run", "How long would it take without one?"),
            .init("shadow-virt swap web1 --to b --bandwidth 500 --timeout 10m", "At 500 MiB/s at most; give up after ten minutes"),
        ])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let domain = arguments.operands[0]
        if let host = arguments.value("to") { return try migrate(domain, to: host, arguments, context) }
        let common = Set(CommandSpec.Option.client.map(\.long))
        if let stray = spec.options.map(\.long).first(where: { !common.contains($0) && (arguments.has($0) || arguments.value($0) != nil) }) {
            throw misuse("Option '--\(stray)' is for a domain without a shadow, and needs --to HOST")
        }
        let response = try context.ask(ControlRequest(.swap, domain: domain), arguments, command: spec.name, notice:
            "The swap of \(domain) goes on: `shadow-virt status \(domain)` here and on the other host tells how it ended")
        guard let handover = response.handover else { throw context.unexpected(spec.name) }
        try context.print(.handover(handover), arguments, command: spec.name)
        return ExitCode.ok
    }

    // MARK: Without a shadow

    private func migrate(_ domain: String, to host: String, _ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        var request = ControlRequest(.swap, domain: domain, to: host, pool: arguments.value("pool"), discardStale: arguments.has("discard-stale") ? true : nil)
        request.migration = try options(arguments)
        let interrupt = try CancelOnInterrupt(context.output, notice:
            "The service cancels by itself when it can; `virsh domjobinfo \(domain)` shows a migration that goes on")
        defer { withExtendedLifetime(interrupt) {} }
        let response: ControlResponse
        do {
            response = try context.ask(request, arguments, command: spec.name, interrupt: interrupt)
        } catch let failure as ControlFailure where interrupt.isPressed {
            context.output.error(failure.message, advice: failure.advice)
            return ExitCode.interrupted
        }
        if let handover = response.handover {
            try context.print(.handover(handover), arguments, command: spec.name)
        } else if let forecast = response.forecast {
            try context.print(.forecast(forecast), arguments, command: spec.name)
        } else if let migration = response.migration {
            if interrupt.isPressed { context.remark("Too late to cancel", arguments) }
            try context.print(.migration(migration), arguments, command: spec.name)
        } else {
            throw context.unexpected(spec.name)
        }
        return ExitCode.ok
    }

    private func options(_ arguments: ParsedArguments) throws -> MigrationOptions {
        var options = MigrationOptions()
        if let text = arguments.value("bandwidth") { options.bandwidthBytesPerSecond = try bandwidth(text) }
        if let text = arguments.value("downtime") {
            guard let milliseconds = Self.milliseconds(text, plain: 1), milliseconds >= 1, milliseconds <= Double(MigrationOptions.downtimeRangeMs.upperBound) else {
                throw misuse("Option '--downtime': '\(text)' is no time from 1ms to 2000s")
            }
            options.downtimeMs = UInt64(milliseconds)
        }
        if let text = arguments.value("timeout") {
            guard let milliseconds = Self.milliseconds(text, plain: 1000), MigrationOptions.timeoutRangeSeconds.contains(milliseconds / 1000) else {
                throw misuse("Option '--timeout': '\(text)' is no time from 1s to 7 days")
            }
            options.timeoutSeconds = milliseconds / 1000
        }
        if let text = arguments.value("parallel") {
            guard let count = Int(text), MigrationOptions.parallelRange.contains(count) else { throw misuse("Option '--parallel': '\(text)' is no number from 1 to 255") }
            options.parallel = count
        }
        if arguments.has("auto-converge"), arguments.has("no-auto-converge") { throw misuse("Options '--auto-converge' and '--no-auto-converge' exclude each other") }
        options.autoConverge = !arguments.has("no-auto-converge")
        options.postcopy = arguments.has("postcopy")
        options.compress = arguments.has("compress")
        options.tls = arguments.has("tls")
        options.dryRun = arguments.has("dry-run")
        options.uri = arguments.value("uri")
        if let problem = options.problem { throw misuse(problem) }
        return options
    }

    /// A plain number means MiB/s, as it does for virsh.
    private func bandwidth(_ text: String) throws -> UInt64 {
        let range = MigrationOptions.bandwidthRangeMiB
        if text.utf8.allSatisfy({ (0x30...0x39).contains($0) }) {
            guard let number = UInt64(text), range.contains(number) else { throw misuse("Option '--bandwidth': '\(text)' is not from 1 to \(range.upperBound) MiB/s") }
            return number << 20
        }
        do {
            let rate = try DataRate.parse(text)
            guard rate >= 1 << 20 else { throw misuse("Option '--bandwidth': '\(text)' is less than 1MiB/s") }
            return rate
        } catch let error as DataRate.ParseError {
            throw misuse("Option '--bandwidth': \(error)")
        }
    }

    /// `300ms`, `1.5s`, `10m`, `2h`; a plain number counts in `plain` milliseconds. Nil: no time.
    static func milliseconds(_ text: String, plain: Double) -> Double? {
        let number = text.prefix { $0.isASCII && ($0.isNumber || $0 == ".") }
        let factors: [String: Double] = ["": plain, "ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000]
        guard number.utf8.count <= 12, number.first != ".", number.last != ".", let value = Double(number), let factor = factors[String(text[number.endIndex...])] else { return nil }
        return value * factor
    }
}
