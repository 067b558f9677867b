import ControlProtocol

struct ProtectCommand: Command {
    let spec = CommandSpec(
        name: "protect", summary: "keep a live shadow of a domain on another host",
        operands: [.init(name: "DOMAIN")],
        options: [
            .init("to", value: "HOST", isRepeatable: true, help: "The host that holds the shadow: a name from 'peers' in the configuration. Given several times: a shadow on each, all fed "
                + "from one capture (engine continuous). HOST:N: that one commits every Nth epoch only, 1 to 1000. Without it, or with 'auto', the host that suits best: "
                + "`shadow-virt placement DOMAIN --explain`."),
            .init("interval", value: "TIME", help: "Time between two epochs: 20ms, 0.5s, 5min; a plain number means milliseconds. 5ms to 60s with the engine "
                + "continuous (default: interval_ms of the configuration), 1s to 1h with periodic (default: 30s)."),
            .init("engine", value: "auto|continuous|periodic", help: "How epochs are captured. 'continuous': many a second, KVM guests only. 'periodic': one every few seconds to "
                + "minutes, any guest. 'auto', the default: continuous where guest and QEMU can, periodic otherwise."),
            .init("without-disks", help: "Protect RAM and device state only. After a failover the guest meets whatever its disks hold over there."),
            .init("pool", value: "NAME", help: "HOST's storage pool for the replicas of all disks. Default: for each disk the pool of the same name as here."),
            .init("discard-stale", help: "Let replicas overwrite volumes on HOST that are not known to be replicas, or that were written to since. "
                + "What is in them is lost. A volume that another domain uses is never taken."),
            .init("disk-rate", value: "BYTES/s", help: "Limit of the disks' first copy, 64KiB/s to 1024GiB/s: 50MiB/s; a plain number means bytes per second."),
            .init("on-failure", value: "restart|none", help: "For a guest with disks on storage that both hosts share: 'restart' boots it cold on HOST once the "
                + "primary is proved dead; 'none', the default, leaves that to you. `swap` works either way."),
            .init("ghost", help: "Leave nothing behind: when the guest ends, its replicas and all records of it go, on both hosts. For transient domains and batch jobs."),
            .init("no-policy", help: "Leave the domain's policy as it is. Otherwise this is written into its metadata, and holds wherever it runs: after a hand-over or its next start the "
                + "guest gets its shadow by itself, until `unprotect`. With --to HOST it is about this host and HOST, else about all that suit."),
            .init("no-wait", help: "Return as soon as the first copy has begun."),
        ] + CommandSpec.Option.client,
        description: [
            "Starts a shadow of DOMAIN (name, id or UUID) on HOST and copies everything that the guest changes there, one consistent "
                + "epoch after another. Without --no-wait it returns once the shadow holds the first epoch: from then on a failure of this host costs at most one epoch.",
            "Of a domain that is protected already, another --to adds a shadow; the first copy is made anew for all of them.",
            "The guest keeps running throughout. Ctrl-C ends the waiting only.",
        ],
        examples: [
            .init("shadow-virt protect web1 --to b", "Keep a shadow of web1 on host b"),
            .init("shadow-virt protect web1 --to b --pool fast --disk-rate 100MiB/s", "Replicas in b's pool 'fast', copied at 100 MiB/s at most"),
            .init("shadow-virt protect web1 --to b --engine periodic --interval 1min", "A consistent copy every minute, whatever runs the guest"),
            .init("shadow-virt protect web1 --to b --to c:10", "Two shadows; the one on c commits every tenth epoch"),
            .init("shadow-virt protect web1 --to b --interval 100ms --no-wait", "An epoch every 100 ms; don't wait for the first copy"),
        ])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let domain = arguments.operands[0]
        var intervalMs: Double?
        if let text = arguments.value("interval") {
            do {
                intervalMs = try Interval.parse(text)
            } catch {
                throw misuse("Option '--interval': \(error)")
            }
        }
        let shadows = try (arguments.lists["to"] ?? []).map { text in
            guard let choice = ShadowChoice(text) else {
                throw misuse("Option '--to': '\(text)' is neither HOST nor HOST:N with N from 1 to \(ShadowChoice.multipleRange.upperBound)")
            }
            return choice
        }
        if let twice = shadows.enumerated().first(where: { index, shadow in shadows[..<index].contains { $0.host == shadow.host } })?.element.host {
            throw misuse("Option '--to': host \(twice) is named twice")
        }
        if shadows.count > 1 || shadows.contains(where: { $0.multiple != 1 }), shadows.contains(where: { $0.host == "auto" }) {
            throw misuse("Option '--to': 'auto' stands alone")
        }
        var request = ControlRequest(.protect, domain: domain, to: shadows.first?.host, intervalMs: intervalMs,
                                     withoutDisks: arguments.has("without-disks"), wait: !arguments.has("no-wait"))
        if arguments.has("ghost") { request.ghost = true }
        if arguments.has("no-policy") { request.noPolicy = true }
        if shadows.count > 1 || shadows.contains(where: { $0.multiple != 1 }) { request.shadows = shadows }
        if let text = arguments.value("engine") {
            guard let engine = EngineChoice(rawValue: text) else {
                throw misuse("Option '--engine': '\(text)' is none of auto, continuous and periodic")
            }
            request.engine = engine
        }
        try addDisks(to: &request, arguments)
        let response = try context.ask(request, arguments, command: spec.name, notice:
            "The first copy goes on in the background: `shadow-virt status \(domain)` shows it, `shadow-virt unprotect \(domain)` ends it")
        guard let done = response.done else { throw context.unexpected(spec.name) }
        try context.printDone(done, arguments, command: spec.name)
        return ExitCode.ok
    }

    private func addDisks(to request: inout ControlRequest, _ arguments: ParsedArguments) throws {
        if arguments.has("without-disks") {
            for option in ["pool", "disk-rate", "discard-stale"] where arguments.has(option) || arguments.value(option) != nil {
                throw misuse("Options '--without-disks' and '--\(option)' exclude each other")
            }
        }
        request.pool = arguments.value("pool")
        guard request.pool != "" else { throw misuse("Option '--pool': the name is empty") }
        if arguments.has("discard-stale") { request.discardStale = true }
        if let text = arguments.value("disk-rate") {
            do { request.diskRateBytesPerSecond = try DataRate.parse(text) } catch { throw misuse("Option '--disk-rate': \(error)") }
        }
        if let text = arguments.value("on-failure") {
            guard let choice = OnFailure(rawValue: text) else { throw misuse("Option '--on-failure': '\(text)' is neither restart nor none") }
            request.onFailure = choice
        }
    }
}
