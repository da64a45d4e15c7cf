{{/* Names and labels. The argument is a dict of the root context and the component. */}}
{{- define "mooring.name" -}}
{{ printf "%s-%s" .root.Release.Name .component | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "mooring.selector" -}}
app.kubernetes.io/name: mooring
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "mooring.labels" -}}
{{ include "mooring.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "mooring.image" -}}
{{- $image := index .root.Values.image .program -}}
{{- if $image.digest -}}
{{ printf "%s@%s" $image.repository $image.digest }}
{{- else -}}
{{ printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion) }}
{{- end -}}
{{- end }}

{{/* What every pod has in common. */}}
{{- define "mooring.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: { type: RuntimeDefault }
volumes:
  - name: config
    configMap: { name: {{ .config }} }
  - name: secrets
    secret: { secretName: {{ index .root.Values.secrets .component }}, defaultMode: 0440 }
  {{- with .root.Values.volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Replicas on different hosts and, where there are several, in different zones. */}}
{{- define "mooring.spread" -}}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "mooring.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}

{{/* What every container has in common. */}}
{{- define "mooring.container" -}}
image: {{ include "mooring.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
volumeMounts:
  - { name: config, mountPath: /etc/mooring, readOnly: true }
  - { name: secrets, mountPath: /run/secrets, readOnly: true }
  {{- with .root.Values.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* The chart's variables, and then those of the values, which count. */}}
{{- define "mooring.env" -}}
{{- $own := dict "MOORING__NATS__USER" .user "MOORING__NATS__PASSWORD__FILE" "/run/secrets/nats-password" -}}
{{- $given := merge (dict) (index .root.Values .component).env .root.Values.env -}}
{{- range $name, $value := merge $given .own $own }}
- { name: {{ $name }}, value: {{ $value | toString | quote }} }
{{- end }}
{{- end }}

{{/* Where a service listens, and what it tells Prometheus. */}}
{{- define "mooring.listen" -}}
{{- $section := upper .component -}}
{{- $own := dict (printf "MOORING__%s__LISTEN" $section) (printf "0.0.0.0:%v" .port) -}}
{{- $_ := set $own (printf "MOORING__%s__ADMIN_LISTEN" $section) (printf "0.0.0.0:%v" .adminPort) -}}
{{- if .root.Values.monitoring.podMonitor.enabled -}}
{{- $_ := set $own "OTEL_METRICS_EXPORTER" "prometheus" -}}
{{- $_ := set $own "OTEL_EXPORTER_PROMETHEUS_HOST" "0.0.0.0" -}}
{{- end -}}
{{ toYaml $own }}
{{- end }}

{{/* A kubelet that asks every few seconds. The first start waits for the schema, or for a log to be recovered. */}}
{{- define "mooring.probes" -}}
startupProbe:
  httpGet: { path: /livez, port: admin }
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: { path: /livez, port: admin }
  periodSeconds: 10
  timeoutSeconds: 5
readinessProbe:
  httpGet: { path: /readyz, port: admin }
  periodSeconds: 5
  timeoutSeconds: 5
# Until no load balancer sends anything here any more.
lifecycle:
  preStop:
    sleep: { seconds: 10 }
{{- end }}
