from __future__ import annotations
import sys, warnings, time
import numpy as np, optuna
from dataclasses import dataclass
from collections.abc import Callable
from lt_search.sampler import ReseededSampler
warnings.simplefilter("ignore"); optuna.logging.set_verbosity(optuna.logging.ERROR)
BUDGET = 60

@dataclass(frozen=True)
class Problem:
    name: str; kind: str; ratio: float; d1: int; d2: int; f: Callable; noise: float = 0.0
    suggest: Callable | None = None

def plain(t, p):
    x1 = np.array([t.suggest_float(f"s1.{i}", 0, 1) for i in range(p.d1)])
    x2 = np.array([t.suggest_float(f"s2.{i}", 0, 1) for i in range(p.d2)])
    return x1, x2

def bowl(z): return -np.sum(z**2)
def weak(o, x1, x2): return bowl(x1-o[0]) + bowl(x2-o[1]) - 0.3*np.sum(x1-o[0])/len(x1)**.5*np.sum(x2-o[1])/len(x2)**.5
def rough(o, x1, x2):
    z=np.concatenate([x1-o[0],x2-o[1]]); return -np.sum(np.abs(z)) -0.1*np.sum(1-np.cos(4*np.pi*z))- 0.2*np.abs(np.sum(x1-o[0]))*np.abs(np.sum(x2-o[1]))
def strong(o, x1, x2):
    d=min(len(x1),len(x2)); m=o[1].copy(); m[:d]+= 1.0*o[2][:d]*(x1-o[0])[:d]
    return bowl(x1-o[0]) + bowl(x2-m)
def mixed_suggest(t, p):
    x1=np.array([np.log10(t.suggest_float("s1.lr",1e-4,1,log=True))/4+1, t.suggest_float("s1.w",0,1), (t.suggest_int("s1.e",1,20)-1)/19])
    c=t.suggest_categorical("s1.c",["a","b","c"])
    x2=np.array([np.log10(t.suggest_float("s2.lr",1e-4,1,log=True))/4+1, t.suggest_float("s2.q",0,1)])
    e=t.suggest_categorical("s2.c",[True,False])
    return np.append(x1,"abc".index(c)), np.append(x2,float(e))
def mixed(o,x1,x2):
    return bowl(x1[:3]-o[0][:3])+bowl(x2[:2]-o[1][:2]) -0.15*((x1[3]-int(o[0][3]*3))%3) -0.15*(x2[2]!=(o[1][2]>.5))
def switch(o,x1,x2):
    m=o[1].copy(); m[:2]=(m[:2]+x1[3]/3)%1
    return bowl(x1[:3]-o[0][:3])+bowl(x2[:2]-m[:2]) -0.15*((x1[3]-int(o[0][3]*3))%3) -0.15*(x2[2]!=((o[1][2]>.5) ^ (x1[3]==1)))
def branch_suggest(t,p):
    l=t.suggest_categorical("s1.loss",["ce","tri"])
    x1=[t.suggest_float("s1.lr",0,1),t.suggest_float("s1.wd",0,1)]
    x1+= [t.suggest_float("s1.margin",0,1), 1] if l=="tri" else [0.,0]
    x2=[t.suggest_float("s2.a",0,1)]; h=t.suggest_categorical("s2.head",["lin","cos"])
    x2+= [t.suggest_float("s2.scale",0,1),t.suggest_float("s2.m",0,1),1] if h=="cos" else [t.suggest_float("s2.l2",0,1),0.,0]
    return np.array(x1),np.array(x2)
def branch(o,x1,x2):
    v=bowl(x1[:2]-o[0][:2])-( (x1[2]-o[0][2])**2 if x1[3] else 0.15)
    v+=-(x2[0]-o[1][0])**2-( (x2[1]-o[1][1])**2+(x2[2]-o[1][2])**2 if x2[3] else 0.1+(x2[1]-o[1][3])**2)
    return v
only1=lambda o,x1,x2: bowl(x1-o[0])
only2=lambda o,x1,x2: bowl(x2-o[1])
P=[
 Problem("weak 3+6","weak",20,3,6,weak),
 Problem("weak 4+8","weak",50,4,8,weak),
 Problem("rough 3+5","weak",10,3,5,rough),
 Problem("noisy 3+5","weak",15,3,5,weak,noise=.03),
 Problem("mixed 4+3","weak",10,4,3,mixed,suggest=mixed_suggest),
 Problem("branch","weak",15,4,4,branch,suggest=branch_suggest),
 Problem("weak 3+6 r5","weak",5,3,6,weak),
 Problem("rough 2+4 r5","weak",5,2,4,rough),
 Problem("strong 3+5","strong",10,3,5,strong),
 Problem("strong 2+2","strong",3,2,2,strong),
 Problem("switch","strong",20,4,3,switch,suggest=mixed_suggest),
 Problem("weak 3+6 r2","strong",2,3,6,weak),
 Problem("irrel2","irrel",10,3,3,only1),
 Problem("irrel2 r2","irrel",2,4,3,only1,noise=.02),
 Problem("irrel1","irrel",5,3,3,only2),
]
class Naive(optuna.samplers.BaseSampler): pass

def run(p, seed, method):
    rng=np.random.default_rng([seed,7]); o=(rng.uniform(.15,.85,4 if p.suggest else p.d1), rng.uniform(.15,.85,4 if p.suggest else p.d2), rng.choice([-1,1],8))
    st=optuna.create_study(direction="maximize")
    if method in("tpe","random","naive"): st.sampler=ReseededSampler(seed,"random" if method=="random" else "tpe")
    else:
        from lt_search.staged_sampler import StagedSampler
        names=[f"s1.{i}" for i in range(p.d1)]+["s1.lr","s1.w","s1.e","s1.c","s1.loss","s1.wd","s1.margin"]
        st.sampler=StagedSampler(names,cost_ratio=p.ratio,seed=seed)
    budget=BUDGET*(p.ratio+1); spent=0.; seen=set(); curve=[]; bo=-np.inf; bt=-np.inf; coin=np.random.default_rng([seed,8]); nr=np.random.default_rng([seed,9])
    while True:
        if method=="naive" and len(seen)>=6 and coin.random()<.5:
            b=st.best_trial; st.enqueue_trial({k:v for k,v in b.params.items() if k.startswith("s1")})
        t=st.ask(); x1,x2=(p.suggest or plain)(t,p); key=tuple(x1)
        spent+=1+(0 if key in seen and method in("naive","staged") else p.ratio); seen.add(key)
        if spent>budget+1e-9: break
        v=float(p.f(o,x1,x2)); ob=v+p.noise*nr.standard_normal(); st.tell(t,ob)
        if ob>bo: bo=ob; bt=v
        curve.append((spent,bt))
    return np.array(curve), len(seen)

def main():
    seeds=int(sys.argv[1]); only=sys.argv[2] if len(sys.argv)>2 else ""; methods=sys.argv[3].split(",") if len(sys.argv)>3 else ["random","tpe","naive","staged"]
    import pickle,os
    cache="/tmp/bench_cache60"; os.makedirs(cache,exist_ok=True)
    for p in P:
        if only and not any(o==p.name or o==p.kind for o in only.split(',')): continue
        res={m:[] for m in methods}; t0=time.time(); ns=[]
        for s in range(seeds):
            for m in methods:
                fn=f"{cache}/{p.name.replace(' ','_')}_{m}_{s}.pkl"
                if m!="staged" and os.path.exists(fn): c=pickle.load(open(fn,"rb"))
                else:
                    c,k=run(p,s,m)
                    if m!="staged": pickle.dump(c,open(fn,"wb"))
                    else: ns.append((k,len(c)))
                res[m].append(c)
        fin={m:np.array([c[-1,1] for c in res[m]]) for m in methods}
        B=BUDGET*(p.ratio+1)
        def toT(m): return np.array([next((a for a,b in c if b>=f),np.inf)/B for c,f in zip(res[m],fin["tpe"])])
        gap=(fin["tpe"]-fin["random"]).mean()
        d=(fin["staged"]-fin["tpe"]); bs=np.random.default_rng(0).choice(d,(2000,len(d))).mean(1)
        print(f"{p.name:16s}{p.kind:7s}{p.ratio:4.0f} | regret "+" ".join(f"{m} {np.median(-fin[m]):.4f}" for m in methods)+f" | to TPE: staged {np.median(toT('staged')):.2f} naive {np.median(toT('naive')):.2f} | rel diff {d.mean()/gap:+.2f} low90 {np.quantile(bs,.1)/gap:+.2f} | s1/trials {np.mean([a for a,_ in ns]):.0f}/{np.mean([b for _,b in ns]):.0f} {time.time()-t0:.0f}s",flush=True)
if __name__=="__main__": main()
