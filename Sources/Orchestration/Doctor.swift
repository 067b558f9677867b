import Configuration
import ControlProtocol
import Foundation
import FoundationXML
import Glibc
import Health
import Libvirt
import Platform

/// Looks for everything that protection needs, and says what to do about what is missing. Changes nothing.
public struct Doctor {
    let environment: HostEnvironment

    public init(environment: HostEnvironment) { self.environment = environment }

    /// This host; with a domain, whether that can be protected, to `to` when given.
    public func report(domain word: String?, to host: String?) throws -> DoctorReport {
        var (findings, hasLibvirt) = checkHost()
        var name: String?
        let peer = try host.map { try environment.peer($0) }
        if let word, hasLibvirt {
            let domain = try environment.connect().lookup(anyOf: word)
            name = domain.name
            findings += try check(domain: domain, peer: peer, ProtectRequest()).findings
        } else if let peer {
            findings += checkPeer(peer)
        }
        return DoctorReport(host: environment.hostName, domain: name, findings: findings)
    }

    // MARK: The host

    /// The second: whether libvirt answers, without which nothing can be said of a domain.
    private func checkHost() -> ([Finding], Bool) {
        var findings: [Finding] = []
        findings.append(access("/dev/kvm", R_OK | W_OK) == 0
            ? Finding("kvm", .ok, "/dev/kvm is there")
            : Finding("kvm", .warning, "/dev/kvm is \(errno == ENOENT ? "missing" : "not accessible"): guests can be protected with the engine periodic only",
                      advice: "Enable virtualisation in the firmware and load kvm_intel or kvm_amd; run shadow-virt as root"))
        let (libvirtFindings, hasLibvirt) = checkLibvirt()
        findings += libvirtFindings
        do {
            let secret = try environment.configuration.loadSecret()
            findings.append(secret == nil
                ? Finding("secret", .warning, "No shared secret: the service talks on loopback only", advice: "Make \(environment.configuration.secretFile) and copy it to every host")
                : Finding("secret", .ok, "\(environment.configuration.secretFile)"))
        } catch {
            findings.append(Finding("secret", .failed, "\(error)"))
        }
        if environment.configuration.peers.isEmpty {
            findings.append(Finding("peers", .warning, "No other hosts are configured", advice: "List them under `peers` in \(environment.configuration.file)"))
        }
        return (findings + BMCCheck.findings(environment.configuration), hasLibvirt)
    }

    private func checkLibvirt() -> ([Finding], Bool) {
        do {
            let connection = try environment.connect()
            let libvirt = try connection.libvirtVersion()
            let finding = libvirt >= Version(9, 0, 0)
                ? Finding("libvirt", .ok, "libvirt \(libvirt)")
                : Finding("libvirt", .warning, "libvirt \(libvirt) is older than 9.0, which nobody has tried", advice: "Use Debian 12, Ubuntu 24.04, RHEL 9 or later")
            return ([finding, Self.judge(qemu: try connection.hypervisorVersion())], true)
        } catch {
            let uri = environment.configuration.libvirtURI
            return ([Finding("libvirt", .failed, "No connection to \(uri): \(error)",
                             advice: "Start its daemon (`systemctl start libvirtd` or `virtqemud`), or correct libvirt_uri in \(environment.configuration.file)")], false)
        }
    }

    static func judge(qemu: Version) -> Finding {
        if EngineDecision.entersNoCOLO(qemu) {
            return Finding("qemu", .warning, "QEMU \(qemu) does not enter COLO (fixed in 10.0.7 and 10.2): its guests can be protected with the engine periodic only",
                           advice: "Update QEMU and restart the guests")
        }
        if qemu < Version(7, 2, 0) {
            return Finding("qemu", .warning, "QEMU \(qemu) is older than 7.2, which nobody has tried", advice: "Use QEMU 7.2 or later")
        }
        return Finding("qemu", .ok, "QEMU \(qemu)")
    }

    // MARK: A domain

    /// Everything about one domain. `protect` refuses what is `failed` here.
    /// `engine` is nil when a finding says why there is none.
    func check(domain: Domain, peer: Peer?, _ request: ProtectRequest) throws -> (findings: [Finding], engine: EngineDecision?) {
        guard try domain.isActive() else {
            return ([Finding("running", .failed, "Domain \(domain.name) does not run", advice: "Start it with `virsh start \(domain.name)`")], nil)
        }
        let definition = try DomainDefinition(xml: domain.xml(flags: [.secure]))
        var findings: [Finding] = []
        let (state, reason) = try domain.state()
        // Between two lookups an epoch may have it paused for a millisecond; a user's pause stays.
        if state == .paused, reason == PausedReason.user.rawValue {
            findings.append(Finding("running", .failed, "Domain \(domain.name) is suspended", advice: "Resume it with `virsh resume \(domain.name)`"))
        }
        let (engineFindings, engine) = try checkEngine(domain, definition, request)
        findings += engineFindings
        let plan = request.withoutDisks ? nil : try DiskPlan.make(domain, definition, ownFolders: environment.ownFolders)
        findings += checkDisks(definition, plan, request)
        findings += try definition.obstacles + DomainDefinition.attachments(of: domain)
        if let peer { findings += checkPeer(peer, definition, plan, request) }
        return (findings, engine)
    }

    private func checkEngine(_ domain: Domain, _ definition: DomainDefinition, _ request: ProtectRequest) throws -> ([Finding], EngineDecision?) {
        var engine: EngineDecision?
        var findings = [Self.judge(qemu: try domain.monitor(QueryVersion()).version)]
        do {
            let pid = try? LocalDomain(uuid: domain.uuid, name: domain.name, connect: environment.connect).processID()
            let decision = try EngineDecision.make(request.engine, domain, definition, pid: pid)
            try decision.check(intervalMs: request.intervalMs)
            engine = decision
            findings.append(Finding("engine", .ok, "\(decision.engine.rawValue): \(decision.reason)"))
        } catch let failure as ControlFailure {
            findings.append(Finding("engine", .failed, failure.message, advice: failure.advice))
        }
        if let blockers = try domain.monitor(QueryMigrate()).blockedReasons, !blockers.isEmpty {
            findings.append(Finding("migratable", .failed, "QEMU cannot migrate the guest: \(blockers.joined(separator: "; "))", advice: "Remove what it names"))
        }
        return (findings, engine)
    }

    /// `plan` is nil when the disks are left alone.
    private func checkDisks(_ definition: DomainDefinition, _ plan: DiskPlan?, _ request: ProtectRequest) -> [Finding] {
        var findings: [Finding] = []
        if let plan {
            findings += plan.findings(domain: definition.name, onFailure: request.onFailure)
        } else {
            let writable = definition.writableDisks.map(\.target)
            findings.append(Finding("disks", .ok, writable.isEmpty ? "No writable disk" : "Writable disks are not replicated (\(writable.joined(separator: ", ")))"))
        }
        let ide = definition.disks.filter { $0.bus == "ide" && $0.device == "disk" && !$0.isEmpty }.map(\.target)
        if !ide.isEmpty {
            // hw/ide/pci.h, bmdma_active_if: seen once in some thousand epochs with a guest that writes by bus-master DMA.
            findings.append(Finding("ide", .warning, "Disks on the IDE bus (\(ide.joined(separator: ", "))): QEMU up to at least 7.2 may abort when it is captured in the middle of an IDE DMA command",
                                    advice: "Use virtio, SCSI or SATA disks"))
        }
        if !definition.disks.contains(where: { !$0.isEmpty && $0.device == "disk" }) {
            findings.append(Finding("foreign-migration", .warning, "The guest has no disk, so nothing keeps `virsh save`, `dump` or `migrate` away from QEMU while it is protected",
                                    advice: "Do not use them on a protected guest; QEMU before 8 would lose its migration for good"))
        }
        return findings
    }

    // MARK: The peer

    private func checkPeer(_ peer: Peer, _ definition: DomainDefinition? = nil, _ plan: DiskPlan? = nil, _ request: ProtectRequest = ProtectRequest()) -> [Finding] {
        examine(peer, definition, plan, request).findings
    }

    /// `needs`: when they are known already. `facts` is nil when the peer gave none.
    func examine(_ peer: Peer, _ definition: DomainDefinition?, _ plan: DiskPlan?, _ request: ProtectRequest, needs: DefinitionNeeds? = nil,
                 timeoutMs: Double = 20_000) -> (findings: [Finding], facts: HostFacts?) {
        let facts: HostFacts
        do {
            var question = PeerRequest(.facts, host: environment.hostName, uuid: definition?.uuid, domain: definition?.name, xml: definition?.cpuXML,
                                       disks: plan?.replicas, media: plan?.media, pool: request.pool, discardStale: request.discardStale ? true : nil)
            question.needs = try needs ?? definition?.needs { try environment.connect().capabilitiesXML() }
            let answer = try environment.client(of: peer).ask(question, timeoutMs: timeoutMs)
            guard let given = answer.facts else { return ([Finding("peer", .failed, "\(peer.name) gave no facts about itself")], nil) }
            facts = given
        } catch {
            return ([Finding("peer", .failed, "\(error)", advice: "Check that shadow-virt runs on \(peer.name), listens on \(peer.address), and has the same secret_file")], nil)
        }
        var findings = [Finding("peer", .ok, "\(peer.name): libvirt \(facts.libvirtVersion), QEMU \(facts.hypervisorVersion)")]
        guard let definition else { return (findings, facts) }
        findings += Self.judge(facts, definition, peer: peer.name)
        findings += facts.definition ?? []
        // A tenth more than the guest's RAM: journal, device state, QEMU itself. Huge pages are counted by themselves.
        let huge = definition.hugePages.reduce(0) { $0 + $1.byteCount }
        let need = definition.memoryBytes - min(huge, definition.memoryBytes) + definition.memoryBytes / 10
        if facts.freeMemoryBytes < need {
            findings.append(Finding("memory", .failed, "\(peer.name) has \(facts.freeMemoryBytes >> 20) MiB free, the shadow needs \(need >> 20) MiB", advice: "Free memory there"))
        } else {
            findings.append(Finding("memory", .ok, "\(peer.name) has \(facts.freeMemoryBytes >> 20) MiB free"))
        }
        if let disks = facts.disks {
            findings += disks
        } else if let plan, !plan.replicas.isEmpty {
            findings.append(Finding("peer-disks", .failed, "shadow-virt on \(peer.name) knows nothing of disks", advice: "Install the same release on both"))
        }
        return (findings, facts)
    }

    /// Whether the peer can run the guest's machine at all.
    static func judge(_ facts: HostFacts, _ definition: DomainDefinition, peer: String) -> [Finding] {
        var findings: [Finding] = []
        if !facts.hasKVM, definition.type == "kvm" {
            findings.append(Finding("peer-kvm", .failed, "\(peer) has no /dev/kvm", advice: "Enable virtualisation in its firmware and load kvm_intel or kvm_amd"))
        }
        if facts.machines.isEmpty || facts.machines.contains(definition.machine) {
            findings.append(Finding("machine-type", .ok, "\(peer) has \(definition.machine)"))
        } else {
            findings.append(Finding("machine-type", .failed, "\(peer) lacks the machine type \(definition.machine)",
                                    advice: "Install the same or a newer QEMU there, or give the domain an older machine type"))
        }
        // Under TCG the CPU is QEMU's own, whatever the host has.
        if facts.cpuVerdict == "incompatible", definition.type == "kvm" {
            findings.append(Finding("cpu", .failed, "The CPU of \(peer) cannot run this guest's CPU model", advice: "Give the domain a CPU model that both hosts have"))
        }
        return findings
    }

    /// What this host says about itself to a peer.
    func facts(_ request: PeerRequest) throws -> HostFacts {
        let connection = try environment.connect()
        var facts = HostFacts(libvirtVersion: try connection.libvirtVersion().description, hypervisorVersion: try connection.hypervisorVersion().description,
                         freeMemoryBytes: try Self.availableMemory() ?? connection.freeMemory(), machines: Self.machines(try connection.capabilitiesXML()),
                         cpuVerdict: request.xml.flatMap { xml in (try? connection.compareHypervisorCPU(xml: xml))?.description },
                         hasKVM: access("/dev/kvm", R_OK | W_OK) == 0)
        if let uuid = request.uuid, let domain = request.domain, request.disks != nil || request.media != nil {
            var terms = ReplicaProvisioner.Terms(pool: request.pool, discardStale: request.discardStale ?? false)
            terms.replacesShadow = environment.records.holdsShadow(uuid)
            facts.disks = ReplicaProvisioner(uuid: uuid, domain: domain, environment: environment).findings(request.disks ?? [], media: request.media ?? [], terms)
        }
        if let needs = request.needs { facts.definition = DefinitionCheck(needs: needs, host: environment.hostName, connection: connection).findings() }
        return facts
    }

    /// The kernel's own estimate, which counts caches that can be dropped; libvirt's figure does not.
    private static func availableMemory() -> UInt64? {
        guard let text = try? kernelText("/proc/meminfo"),
              let line = text.split(separator: "\n").first(where: { $0.hasPrefix("MemAvailable:") }),
              let kibibytes = line.split(separator: " ").dropFirst().first.flatMap({ UInt64($0) }) else { return nil }
        return kibibytes * 1024
    }

    private static func machines(_ capabilities: String) -> [String] {
        guard let document = try? XMLDocument(xmlString: capabilities),
              let nodes = try? document.nodes(forXPath: "//guest/arch//machine") else { return [] }
        return Array(Set(nodes.compactMap(\.stringValue))).sorted()
    }
}
